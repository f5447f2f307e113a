"""What an optimizer step costs on this machine: workloads, contenders, the memory's limit, and the table of them."""

"""The machinery of a step, whatever the arrays: options, layout, clock, launches."""

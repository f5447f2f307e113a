"""The figure class of all experiments: a matplotlib figure that notebooks show without pyplot."""

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that a notebook shows if it is the value of a cell."""

    def _repr_png_(self) -> bytes:
        """Return the picture as PNG, for IPython."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=self.dpi / 2)  # as wide as a page
        return file.getvalue()

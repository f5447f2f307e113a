"""The figure of all experiments: matplotlib's, which a notebook shows without pyplot too."""

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that a notebook shows where it is the value of a cell."""

    def _repr_png_(self) -> bytes:
        """Return the picture as IPython asks for it."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=self.dpi / 2)  # as wide as a page
        return file.getvalue()

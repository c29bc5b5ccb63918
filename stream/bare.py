"""Passes named tuples of arrays to compiled code without the arrays' owners."""

import importlib
from typing import Any

from numba.extending import intrinsic

cgutils: Any = importlib.import_module("numba.core.cgutils")  # it has no type annotations


def _bare(typing: Any, rows: Any) -> Any:
    """Return the named tuple of arrays with their owners removed; the owners must outlive the call.

    Without owners numba does not count an array's references at each use, which took most of the
    time.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out = args[0]
        for at, array in enumerate(rows.types):
            view = context.make_array(array)(context, builder, builder.extract_value(out, at))
            view.meminfo = cgutils.get_null_value(view.meminfo.type)
            view.parent = cgutils.get_null_value(view.parent.type)
            out = builder.insert_value(out, view._getvalue(), at)  # noqa: SLF001 numba offers no other way
        return out

    return rows(rows), code


bare: Any = intrinsic(_bare)

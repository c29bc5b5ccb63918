"""Named tuples of arrays as compiled code takes them: without the owners of the arrays."""

import importlib
from typing import Any

from numba.extending import intrinsic

cgutils: Any = importlib.import_module("numba.core.cgutils")  # it has no types


def _bare(typing: Any, rows: Any) -> Any:
    """Return the named tuple of arrays without their owners, which outlive the call.

    Nobody then counts the references of an array each time it is named: that took most of the time.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out = args[0]
        for at, array in enumerate(rows.types):
            view = context.make_array(array)(context, builder, builder.extract_value(out, at))
            view.meminfo = cgutils.get_null_value(view.meminfo.type)
            view.parent = cgutils.get_null_value(view.parent.type)
            out = builder.insert_value(out, view._getvalue(), at)  # noqa: SLF001 numba's only way
        return out

    return rows(rows), code


bare: Any = intrinsic(_bare)

"""One form of a call as text: a record, whose rows are in `forms`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Style = Literal["call", "keyed", "json", "parameters", "pairs", "python", "quoted", "elements", "typed", "flags"]
"""How the arguments are written.

- `call`: a JSON object, or a list of them, that holds the name, too.
- `keyed`: a list of objects whose only member is the call: `[{"f": {"p": "value"}}]`.
- `json`: a JSON object behind the name.
- `parameters`: `<parameter=p>value</parameter>`, or JSON between the tags.
- `pairs`: `<arg_key>p</arg_key><arg_value>value</arg_value>`.
- `python`: a Python call with keywords, or a list of such calls.
- `quoted`: an object whose strings stand between tokens: `{p:<|"|>value<|"|>}`.
- `elements`: `<p>value</p>` for the declared parameters, or JSON.
- `typed`: `<|open|>argument key="p" type="string"<|sep|>value<|close|>argument<|sep|>`.
- `flags`: `{--p "value"}`.
"""


@dataclass(frozen=True, slots=True)
class Form:
    """One form. The call's name is where `head` says, or in the arguments.

    `opens` are the wrappers and tokens that come before a call, `ends` what comes behind it; both go with the call.
    `bare` are patterns of a start that needs no wrapper. With `behind_name`, the name may come without a wrapper before
    this token.
    """

    name: str
    style: Style
    opens: tuple[str, ...] = ()
    head: str = ""
    ends: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    behind_name: str = ""
    followed_by: str = ""
    """What alone may follow the call, in forms that prose shows as well."""
    in_any: bool = False
    """It says by itself that it is a call: the wrappers of any form may be around it."""

"""Features of other programs: the forms of files that are read, one module each."""

import pkgutil
from importlib import import_module

from her2.core.errors import UserError
from her2.core.spelling import nearest
from her2.exchange import forms
from her2.exchange.form import Form


def installed_forms() -> dict[str, Form]:
    """Return the forms by name, sorted.

    Raises:
        TypeError: a module of the package does not define FORM, or under another name.
    """
    found = {}
    for module in sorted(pkgutil.iter_modules(forms.__path__), key=lambda one: one.name):
        one = getattr(import_module(f"{forms.__name__}.{module.name}"), "FORM", None)
        name = module.name.replace("_", "-")
        if not isinstance(one, Form) or one.name != name:
            raise TypeError(f"{forms.__name__}.{module.name} does not define FORM of name {name!r}")
        found[name] = one
    return found


def form_of(name: str) -> Form:
    """Return the form of a name.

    Raises:
        UserError: there is none.
    """
    found = installed_forms()
    if name not in found:
        meant = nearest(name, found)
        hint = f"did you mean {meant!r}?" if meant else f"the forms are {', '.join(found)}."
        raise UserError(f"format: {name!r} is no form of feature files; {hint}")
    return found[name]

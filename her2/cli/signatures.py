"""The `her2` command: commands whose options are the arguments of a function.

The function's signature gives the options, and the `Args:` of its docstring their help. Its module
is imported only when the command runs or prints its help.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from inspect import Parameter
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class LazyCommand(TyperCommand):
    """A command that makes its options only when they are needed, by a function that imports."""

    def __init__(self, name: str, make: Callable[[], Callable[..., None]], help: str) -> None:
        super().__init__(name, help=help)
        self.make = make

    def get_params(self, ctx: Any) -> Any:
        """Return the options, derived from the function."""
        if self.callback is None:
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            app.command()(self.make())
            built = typer.main.get_command(app)
            self.params, self.callback = built.params, built.callback
        return super().get_params(ctx)


def with_signature(run: Callable[..., None], options: Iterable[Parameter]) -> Callable[..., None]:
    """Give a function that takes any keyword arguments the signature that typer reads."""
    listed = list(options)
    run.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in listed}
    return run


def argument_option(one: Parameter, words: dict[str, str], flag: str = "") -> Parameter:
    """Return the option that an argument of a function becomes: `--flag`, else that of its name.

    Whole numbers are at least 1.
    """
    flag = flag or f"--{one.name.replace('_', '-')}"
    least = 1 if one.annotation is int else None
    return option(
        one.name, one.annotation, typer.Option(flag, min=least, help=words.get(one.name)),
        one.default,
    )  # fmt: skip


def option(name: str, kind: Any, described: Any, default: Any = Parameter.empty) -> Parameter:
    """Return a parameter that typer reads as an option or argument."""
    annotation = Annotated[kind, described]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def argument_help(function: Callable[..., object]) -> dict[str, str]:
    """Return the help of each argument from the docstring's `Args:`."""
    text = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): ((?:.|\n {8})+)", text, re.MULTILINE)
    return {name: " ".join(words.split()).rstrip(".") for name, words in found}

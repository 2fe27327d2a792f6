"""`her2 doctor`: whether the Hugging Face hub answers, and whether a token is there."""

from collections.abc import Iterator

from her2.cli.doctor.base import Check, Finding, Situation


def find(situation: Situation) -> Iterator[Finding]:
    """Yield both; what an encoder needs of them is a finding of its own."""
    import huggingface_hub

    if why := situation.hub:
        yield Finding(
            "note",
            f"cannot be reached ({why}): weights that are not here yet cannot be fetched",
            "behind a proxy set HTTPS_PROXY; without a network fetch weights elsewhere and set "
            "`checkpoint` (docs/encoders.md)",
        )
    else:
        yield Finding("ok", "answers")
    if huggingface_hub.get_token() is not None:
        yield Finding("ok", "a token is there (not shown)")
    else:
        yield Finding("note", "no token, which only gated weights need", "hf auth login")


CHECK = Check("hub", 70, find)

"""The ``recollect`` command."""


def main() -> None:
    """Run the command line; the entry point of the package."""
    import warnings

    from recollect.cli.app import app

    # A person at a terminal wants the sentence, not the file and line it comes from.
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"Warning: {message}\n"
    app(prog_name="recollect")

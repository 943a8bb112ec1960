"""The ``recollect`` command."""

INTERRUPTED = "Interrupted; no file is half-written."


def main() -> None:
    """Run the command line; the entry point of the package."""
    import sys

    try:
        import warnings

        from recollect.cli.app import app
        from recollect.cli.text import prepare_streams

        prepare_streams()
        # A person at a terminal wants the sentence, not the file and line it comes from.
        warnings.formatwarning = lambda message, *_args, **_kwargs: f"Warning: {message}\n"
        app(prog_name="recollect")
    except KeyboardInterrupt:  # while all this is loaded; the commands have their own way to the same end
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)

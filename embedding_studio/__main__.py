"""The entry point `embedding-studio`, which is `python -m embedding_studio` as well."""

from embedding_studio.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()

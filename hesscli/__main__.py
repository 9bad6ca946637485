"""`python -m hesscli` is `hess`."""

from hesscli.cli import main

if __name__ == "__main__":
    main()

"""What the tests share. conftest.py puts the folder tests/ on sys.path, so that children can import it too."""

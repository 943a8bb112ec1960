def run(*a):
    raise AssertionError

"""The ``stllr`` command. Its files load one by one, so that ``stllr --help`` does not wait for Lightning."""

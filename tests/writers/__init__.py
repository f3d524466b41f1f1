"""Writers of tiny trace.dat files, record by record, for tests."""

"""The command line. One module a command; none imports the engine before it must."""

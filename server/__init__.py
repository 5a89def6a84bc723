"""The running process: settings, HTTP, command line, embedded servers."""

"""The program: command line, settings, authentication, and the one place that builds everything."""

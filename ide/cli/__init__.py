"""The command line `atoll`: what users install. It speaks HTTP to a server and knows nothing else of Atoll."""

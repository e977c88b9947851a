# Fetches and unpacks an archive; returns the path of its tree in the Nix store. The URL may hold a secret, so
# it is in the environment: every user of the machine can read the arguments of a process.
"${builtins.fetchTarball { name = "source"; url = builtins.getEnv "NIXERY_ARCHIVE_URL"; }}"

# Fetches and unpacks an archive; the result is the path of its tree in the Nix store. The URL may hold a secret, which is why it
# is in the environment: every user of the machine can read the arguments of a process.
"${builtins.fetchTarball { name = "source"; url = builtins.getEnv "NIXERY_ARCHIVE_URL"; }}"

# A minimal set: no cacert, no iana-etc, no packages for `shell`, and not even a function.
{
  hello = derivation {
    name = "hello-minimal-1.0";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" "mkdir -p $out/bin && echo hello > $out/bin/hello" ];
    PATH = "/usr/bin:/bin";
  };
}

# Debian's packages, and test packages for special contents of images.
{ system }:

let
  debian = import ../../../packagesets/debian { inherit system; };

  triplet = builtins.replaceStrings [ "-linux" ] [ "-linux-gnu" ] system;

  package =
    {
      name,
      script,
      meta ? { },
      ...
    }@arguments:
    derivation (
      {
        system = builtins.currentSystem;
        builder = "/bin/sh";
        args = [ "-e" "-c" script ];
        PATH = "/usr/bin:/bin";
      }
      // removeAttrs arguments [ "script" "meta" ]
    )
    // { inherit meta; };

  # Both have bin/volume, which prints its package.
  volume =
    { name, priority }:
    package {
      inherit name;
      meta = { inherit priority; };
      script = ''
        mkdir -p $out/bin
        printf '#!/bin/sh\necho ${name}\n' > $out/bin/volume
        chmod +x $out/bin/volume
      '';
    };
  # As in nixpkgs: a C library in lib, whose loader has a cache in its own store path.
  glibc = package {
    name = "glibc-9.99";
    libc = debian.libc6;
    program = ./own_cache.py;
    script = ''
      mkdir -p $out/lib
      cp -L $libc/lib/${triplet}/ld-linux-*.so.* $libc/lib/${triplet}/libc.so.6 $out/lib
      chmod -R u+w $out
      python3 $program $out/lib/ld-linux-*.so.* $out/etc/ld.so.cache
    '';
  };

  # A library of Debian by another name, as nixpkgs would have it.
  library =
    { name, from, file, as ? file }:
    package {
      inherit name from glibc;
      script = ''
        mkdir -p $out/lib
        cp -L $from/lib/${triplet}/${file} $out/lib/${as}
        chmod u+w $out/lib/${as}
        patchelf --set-rpath $glibc/lib $out/lib/${as}
      '';
    };
in
debian
// {
  # bash as nixpkgs would have it. Its closure also has libtinfo.so.6 in a higher version, which is another library, and a
  # library that only the cache leads to.
  bash-of-nixpkgs = package {
    name = "bash-of-nixpkgs";
    inherit (debian) bash;
    inherit glibc;
    libraries = library { name = "libtinfo-1"; from = debian.libtinfo6; file = "libtinfo.so.6"; };
    others = [
      (library { name = "zlib-2"; from = debian.zlib1g; file = "libz.so.1"; as = "libtinfo.so.6"; })
      (library { name = "zlib-3"; from = debian.zlib1g; file = "libz.so.1"; as = "libonly.so.1"; })
    ];
    script = ''
      mkdir -p $out/bin $out/share
      cp $bash/bin/bash $out/bin/bash
      chmod u+w $out/bin/bash
      patchelf --set-interpreter $glibc/lib/ld-linux-*.so.* --set-rpath $glibc/lib:$libraries/lib $out/bin/bash
      echo $others > $out/share/others
    '';
  };

  # A user by number, and one by name.
  users = {
    numeric = {
      contents = with debian; [ bash coreutils findutils git openssh-client postgresql ];
      config.User = 1000;
    };
    named = {
      contents = with debian; [ bash coreutils ];
      config = { User = "web:www"; WorkingDir = "/srv"; Volumes = [ "/data" ]; };
    };
    declared = {
      contents = with debian; [ bash coreutils nginx postgresql ];
      config.User = "postgres";
    };
    existing = {
      contents = with debian; [ bash coreutils git ];
      config = { User = "nobody"; WorkingDir = "/tmp"; };
    };
    root = {
      contents = with debian; [ bash coreutils ];
      config = { WorkingDir = "/srv/app"; Volumes = [ "/data" ]; };
    };
  };

  say = package {
    name = "say";
    script = ''
      mkdir -p $out/bin $out/usr/bin
      printf '#!/usr/bin/env bash\necho "''${BASH_VERSION:+said by bash}"\n' > $out/bin/say
      printf '#!/bin/sh\necho said below usr\n' > $out/usr/bin/say-below-usr
      chmod +x $out/bin/say $out/usr/bin/say-below-usr
    '';
  };

  # Another library by the name of the one that bash needs; in the image, it takes the name's place.
  decoy = package {
    name = "decoy";
    meta.priority = 4;
    zlib = debian.zlib1g;
    script = ''
      mkdir -p $out/lib/${triplet}
      cp $zlib/lib/${triplet}/libz.so.1 $out/lib/${triplet}/libtinfo.so.6
    '';
  };

  loud = volume { name = "loud"; priority = 6; };
  quiet = volume { name = "quiet"; priority = 4; };

  # A directory as a symlink, with some names that other packages also have.
  ownfiles = package {
    name = "ownfiles";
    meta.priority = 4;
    script = ''
      mkdir -p $out/etc $out/configuration/certs
      ln -s ../configuration $out/etc/ssl
      echo own > $out/configuration/openssl.cnf
      echo own > $out/configuration/certs/ca-bundle.crt
      printf 'root:x:0:0::/root:/bin/sh\nsomebody:x:4711:4711::/:/bin/sh\n' > $out/etc/passwd
    '';
  };

  # A program built by the Go toolchain, and one of its own programs that does not need the rest: an image with the whole
  # toolchain takes long to unpack.
  gophers = package {
    name = "gophers";
    go = debian.go;
    source = ''
      package main

      import (
      	"fmt"
      	"io"
      	"net/http"
      	"os"
      	"time"
      )

      func main() {
      	if len(os.Args) < 2 {
      		place, failure := time.LoadLocation("Europe/Berlin")
      		if failure != nil {
      			fmt.Println("built", failure)
      			return
      		}
      		fmt.Println("built", time.Unix(1782864000, 0).In(place).Format(time.RFC3339))
      		return
      	}
      	answer, failure := http.Get(os.Args[1])
      	if failure != nil {
      		fmt.Println(failure)
      		os.Exit(1)
      	}
      	io.Copy(os.Stdout, answer.Body)
      }
    '';
    script = ''
      mkdir -p $out/bin
      export HOME=$PWD CGO_ENABLED=0
      echo "$source" > main.go
      $go/bin/go build -trimpath -o $out/bin/built main.go
      cp $(readlink -f $go/bin/gofmt) $out/bin/gofmt
    '';
  };

  # Its closure has a font, which nobody asked for.
  poster = package {
    name = "poster";
    font = debian.fonts-inconsolata;
    script = "mkdir -p $out/share/poster; ln -s $font $out/share/poster/font";
  };

  # One locale as a directory, as Debian has it, without its links to others.
  german = package {
    name = "german";
    locales = debian.locales-all;
    script = "mkdir -p $out/lib/locale; cp -rL $locales/lib/locale/de_DE.utf8 $out/lib/locale";
  };

  # The same in an archive, as nixpkgs' glibcLocales has it.
  germanarchive = package {
    name = "germanarchive";
    locales = debian.locales-all;
    script = ''
      mkdir -p $out/lib/locale archive/usr/lib/locale
      localedef --prefix=$PWD/archive --add-to-archive $locales/lib/locale/de_DE.utf8
      cp archive/usr/lib/locale/locale-archive $out/lib/locale/
    '';
  };

  nixuser = {
    contents = [ debian.nix-bin debian.bash debian.coreutils debian.gnugrep debian.gnused debian.diffutils ];
    config = { User = "builder"; WorkingDir = "/work"; };
  };
}

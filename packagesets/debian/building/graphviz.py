"""The list of Graphviz's plug-ins, which `dot -c` writes at installation: without it `dot` knows no format.

No program of a package runs in a build, so this is what it writes in Debian 12, for the plug-ins that the package has.
"""

from pathlib import Path

from building.outputs import Outputs


def list_plugins(outputs: Outputs) -> None:
    """Write `config6a` beside the plug-ins of `libgvc6`."""
    for directory in sorted(Path(outputs.own, "lib").glob("*/graphviz")):
        blocks = [block for block in _PLUGINS.split("\n\n") if (directory / block.split()[0]).exists()]
        (directory / "config6a").write_text("".join(f"{block.strip()}\n" for block in blocks))


# A library and its name, then the kinds of plug-ins in it with their qualities.
_PLUGINS = """\
libgvplugin_core.so.6 core {
  device { dot:dot 1 gv:dot 1 canon:dot 1 plain:dot 1 plain-ext:dot 1 xdot:xdot 1 xdot1.2:xdot 1 xdot1.4:xdot 1 }
  device { fig:fig 1 }
  device { ismap:map 1 cmap:map 1 imap:map 1 cmapx:map 1 imap_np:map 1 cmapx_np:map 1 }
  device { mp:mp -1 }
  device { ps:ps 1 ps2:ps 1 eps:ps 1 }
  device { svg:svg 1 svgz:svg 1 }
  device { json:json 1 json0:json 1 dot_json:json 1 xdot_json:json 1 }
  device { tk:tk 1 }
  device { vml:vml 1 vmlz:vml 1 }
  device { pic:pic -1 }
  device { pov:pov 1 }
  render { dot 1 xdot 1 }
  render { fig 1 }
  render { map 1 }
  render { mp -1 }
  render { ps 1 }
  render { svg 1 }
  render { json 1 json0 1 dot_json 1 xdot_json 1 }
  render { tk 1 }
  render { vml 1 }
  render { pic -1 }
  render { pov 1 }
  loadimage { png:svg 1 gif:svg 1 jpeg:svg 1 jpe:svg 1 jpg:svg 1 png:fig 1 gif:fig 1 jpeg:fig 1 jpe:fig 1 jpg:fig 1
png:vrml 1 gif:vrml 1 jpeg:vrml 1 jpe:vrml 1 jpg:vrml 1 eps:ps 1 ps:ps 1 (lib):ps 1 png:map 1 gif:map 1 jpeg:map 1
jpe:map 1 jpg:map 1 ps:map 1 eps:map 1 svg:map 1 png:dot 1 gif:dot 1 jpeg:dot 1 jpe:dot 1 jpg:dot 1 ps:dot 1
eps:dot 1 svg:dot 1 png:xdot 1 gif:xdot 1 jpeg:xdot 1 jpe:xdot 1 jpg:xdot 1 ps:xdot 1 eps:xdot 1 svg:xdot 1 svg:svg
1 png:vml 1 gif:vml 1 jpeg:vml 1 jpe:vml 1 jpg:vml 1 gif:tk 1 }
}

libgvplugin_dot_layout.so.6 dot_layout {
  layout { dot 0 }
}

libgvplugin_gd.so.6 gd {
  render { gd 1 }
  render { vrml 1 }
  textlayout { textlayout 2 }
  loadimage { gd:gd 1 gd2:gd 1 gif:gd 1 jpeg:gd 1 jpe:gd 1 jpg:gd 1 png:gd 1 xbm:gd 1 gd:ps 1 gd2:ps 1 gif:ps 1
jpeg:ps 1 jpg:ps 1 jpe:ps 1 png:ps 1 xbm:ps 1 gd:cairo 1 gd2:cairo 1 gif:cairo 1 jpeg:cairo 1 jpg:cairo 1 jpe:cairo
1 png:cairo -1 xbm:cairo 1 }
  device { gif:cairo 10 wbmp:cairo 5 jpe:cairo 5 jpeg:cairo 5 jpg:cairo 5 png:cairo 5 gd:cairo 5 gd2:cairo 5 }
  device { gif:gd 1 wbmp:gd 1 jpe:gd 1 jpeg:gd 1 jpg:gd 1 png:gd 1 gd:gd 1 gd2:gd 1 }
  device { vrml:vrml 1 }
}

libgvplugin_neato_layout.so.6 neato_layout {
  layout { neato 0 fdp 0 sfdp 0 twopi 0 circo 0 patchwork 0 osage 0 nop 0 nop1 0 nop2 0 }
}

libgvplugin_pango.so.6 cairo {
  render { cairo 10 }
  textlayout { textlayout 10 }
  loadimage { png:cairo 1 png:ps 2 }
  device { png:cairo 10 ps:cairo -10 eps:cairo -10 pdf:cairo 10 svg:cairo -10 }
}

libgvplugin_visio.so.6 visio {
  device { vdx:visio 1 }
  render { visio 1 }
}

libgvplugin_webp.so.6 webp {
  device { webp:cairo 1 }
  loadimage { webp:cairo 1 }
}

libgvplugin_xlib.so.6 xlib {
  device { xlib:cairo 0 x11:cairo 0 }
}
"""

"""Grouping a closure into layers that other images, and later versions of the same image, share.

A client that already has a layer does not download it again. A layer is worth nothing to it, though, if one of the
layer's paths is missing there or has changed, and under Nix's rules a path changes whenever anything changes that it
depends on. One layer per store path is therefore the best there is, and **as long as the budget has room, every path
has a layer of its own**. Container runtimes stop at about 125 layers, however, so larger closures have to be grouped,
and the question is only which paths suffer least from company.

1. What a bad group costs is bytes: those of the paths that are pulled again because of a neighbour. The sizes of paths
   are spread widely; in an image of 200 paths the 50 largest have nine tenths of the bytes. So **the largest stand
   alone**, by their own size: adding up closures would count shared paths many times. Nothing that is merely often
   referred to has to: a popular library of 50 kB costs 50 kB when it is pulled once more.
2. A path that is *popular* by the data of the package set counts as twice its size: it is wanted by images that have
   little else in common with this one. More than that would trade bytes that are known for hits that are hoped for.
3. A fifth of the budget is for the rest, and **the rest is grouped by how often it changes**. A path changes with each
   of its inputs, so the number of paths below it says how often, and it is the same number in every image
   (``inputs.py``). The paths are put in this order and cut into parts with about as many bytes each: leaves, which
   stay for long and which most images agree on, on one side, and on the other the tops, which nearly every update
   changes and which are this image's own.
4. A group's rating is the sum of popularity times bytes over its paths. Layers are listed by rating, the highest first,
   so that the lists of two images begin with what they are likely to share.

Ties are broken by name before hash, so an update does not shuffle groups that have nothing to do with it.

Adding a package that is unrelated to an image's others changes no other layer while there is room for all paths. Beyond
the budget each new path can drive one path at most out of a layer of its own, the lightest one; the parts of the
rest, which are small, are then cut anew.

**Why not by dominators**, as Nixery does, and as this package did at first: paths that are reached only through one
other path travel with it, *in this image*. In the next one they are reached in another way, both layers are different, and all
of their bytes are pulled again. And even where they do travel together, the lower one outlives updates of the
upper one. Giving each path that matters its own layer needs no guess. docs/reference/layering-comparison.md has the comparison, on
all of Debian, with this and other rules: ``make bench-layers``.

The budget leaves the image's own layer out, the one with the links into the store.
"""

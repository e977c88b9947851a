"""Grouping a closure into layers that other images, and later versions of the same image, share.

A client that already has a layer does not download it again. A layer is useless to it, though, if one of the
layer's paths is missing there or has changed, and under Nix's rules a path changes whenever anything changes
that it depends on. One layer per store path is therefore optimal, and **as long as the budget suffices, every
path has a layer of its own**. Container runtimes stop at about 125 layers, however, so larger closures have
to be grouped, and the question is only which paths suffer least from sharing a layer.

1. The cost of a bad group is bytes: those of the paths that are pulled again because of a neighbour. The
   sizes of paths vary widely; in an image of 200 paths the 50 largest have nine tenths of the bytes. So **the
   largest stand alone**, by their own size: adding up closures would count shared paths many times. Frequent
   use alone is no reason: a popular library of 50 kB costs 50 kB when it is pulled again.
2. A path that is *popular* by the data of the package set counts as twice its size: images that have little
   else in common with this one contain it. A larger factor would trade known bytes for hoped-for hits.
3. A fifth of the budget is for the rest, and **the rest is grouped by how often it changes**. A path changes
   with each of its inputs, so the number of paths below it measures how often, and that number is the same in
   every image (``grouping.count_inputs``). The paths are sorted by it and cut into parts of about equal size
   in bytes. At one end are leaves, which rarely change and which most images have in common; at the other end
   are the tops, which nearly every update changes and which are specific to this image.
4. A group's rating is the sum of popularity times bytes over its paths. Layers are listed by rating, the
   highest first, so that the lists of two images begin with the layers that they are likely to share.

Ties are broken by name before hash, so an update does not shuffle unrelated groups.

Adding a package that is unrelated to an image's others changes no other layer while every path has its own
layer. Beyond the budget each new path displaces at most one path from its own layer, the lightest one; then
the parts of the rest, which are small, are cut again.

**Why not by dominators**, as Nixery does, and as this package did at first: paths that are reached only
through one other path travel with it, *in this image*. In the next image they are reached in another way;
both layers differ, and all of their bytes are pulled again. And even if they do travel together, the lower
one outlives updates of the upper one. Giving each important path its own layer needs no guess.
docs/reference/layering-comparison.md has the comparison, on all of Debian, with this and other rules: ``make
bench-layers``.

The budget excludes the image's own layer, which holds the links into the store.
"""

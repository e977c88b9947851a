"""Grouping a closure into layers that other images share.

A client that already has a layer does not download it again, so what matters is that two images that have
packages in common also have *layers* in common. One layer per store path would be ideal, but container
runtimes stop at about 125 layers, so paths have to be grouped; and a group is shared only by images that hold
all of it. The rule, therefore: **paths that always travel together go together**.

1. Take the reference graph with the image itself as its root. Path *a* dominates path *b* if every way from
   the root to *b* leads through *a*: then whoever has *b* has it because of *a*, and the two belong in one layer.
   The subtrees directly under the root of the dominator tree are the groups (``dominators.py``).
2. Some paths deserve a layer of their own although something dominates them in *this* image: *popular* ones,
   because in other images something else will refer to them, and *big* ones, because downloading them again is
   what hurts. They get an edge from the root, so that nothing else dominates them (``grouping.py``).
3. A group's rating is the popularity of its root times its size. While there are more groups than the budget
   allows, the two with the lowest rating become one.
4. Layers are listed by rating, the highest first. Ties are broken by store path, everywhere.

After Graham Christensen, "Optimising Docker Layers for Better Caching with Nix" (2018), and Nixery's design.
Sizes are NAR sizes of the paths themselves: adding up closure sizes would count shared paths many times.
"""

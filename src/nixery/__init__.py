"""A container registry that builds the image a client asks for.

The data path, which is also the order of the packages::

    server     a request for a manifest or a blob comes in
    image      its name and tag become an ImageRequest
    pipeline   image_builder.py takes it through everything below
    nix        evaluate the packages, realise them, ask for their closure
    closure    store paths and the graph of their references
    layering   the closure is grouped into layers that other images share
    packing    each layer becomes one compressed tar, in one pass
    storage    blobs under their digests, records beside them
    oci        config and manifest, the bytes a client verifies
"""

__version__ = "0.1.0"

"""A container registry that builds the image a client asks for.

The data path, which is also the order of the packages::

    server     receives the request for a manifest or a blob
    image      parses its name and tag into an ImageRequest
    builds     builder.py takes the request through the following steps
    sources    says which state of the package set the tag means
    nix        evaluates the packages, realises them, and lists their closure
    closure    has store paths and the graph of their references
    layering   groups the closure into layers that images share
    packing    makes each layer a compressed tar, in one pass
    storage    keeps blobs by digest, and records
    oci        has config and manifest, the bytes that a client verifies
"""

__version__ = "0.1.0"

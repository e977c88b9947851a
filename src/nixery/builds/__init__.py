"""The data path, from a name and a tag to a stored image; and what observes or describes builds."""

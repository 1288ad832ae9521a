"""All that is remembered: models, versions, aliases, promotions and keys."""

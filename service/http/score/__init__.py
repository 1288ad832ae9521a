"""The scoring protocol of `/v1`."""

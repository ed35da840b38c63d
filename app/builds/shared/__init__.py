"""Builds of several servers: what is known of them lies in the store, and any server can tell and change it."""

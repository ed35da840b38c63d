"""Serving parameters of one model, searched against a load on servers of this command's own. No part of a server."""

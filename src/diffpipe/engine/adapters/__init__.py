"""Adapters: what their files hold in whatever layout, and which layers of a model that changes into what."""

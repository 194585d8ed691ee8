"""The ComfyUI adapter: everything that imports ComfyUI, except the node classes in nodes.py."""

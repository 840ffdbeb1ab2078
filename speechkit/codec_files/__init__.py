"""The codec as a tool: recordings to ``.skc`` files and back."""

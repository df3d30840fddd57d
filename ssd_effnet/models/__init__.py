"""The detector's parts: backbones, adapters, necks, extra levels, heads, anchors."""

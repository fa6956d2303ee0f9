"""What ours is compared with: other people's codecs and coders, ports of published algorithms, plain PyTorch."""

"""Rate-distortion training: data from folders and tar files, a resumable loop, and `lalic train`."""

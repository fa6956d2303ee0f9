"""Rate and distortion of real files: `lalic eval` and `lalic compare`.

    codecs    what is compared: lalic, and JPEG, WebP, AVIF, JPEG XL, HEVC, VTM, CompressAI where they are installed
    measure   pictures through a codec at each quality: bits of the whole file, PSNR, MS-SSIM, seconds
    bdrate    Bjontegaard deltas between two curves, and the published curves that ship
    forms     the JSON that CompressAI's tools write and read
    plot      curves as PNG and SVG
    match     the quality at which a codec meets a rate or a PSNR; compare, page: pictures side by side

Documentation: `docs/evaluate.md`.
"""

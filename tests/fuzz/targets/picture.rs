//! A picture to start from, which is its own mask: decoded and brought to a size, in little memory.

#![no_main]

mod on_disk;

use libfuzzer_sys::fuzz_target;
use pochade::picture_in::{PictureIn, Pictures};
use pochade::request::{Init, Resize};

use on_disk::on_disk;

fuzz_target!(|bytes: &[u8]| {
    let file = on_disk(bytes);
    let (picture, mask) = (file.path().to_owned(), Some(file.path().to_owned()));
    for resize in [Resize::Crop, Resize::Fit, Resize::Stretch] {
        let init = Init { picture: picture.clone(), mask: mask.clone(), strength: 1.0, resize };
        let _ = PictureIn::read(&init, 64, 48, &Pictures::within(|| Some(64 << 20)));
    }
});

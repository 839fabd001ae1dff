//! Picture files that have been read, kept for the requests that share them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Result, ensure};
use image::RgbImage;

use super::read::{Decoded, MAX_FILE, Opened, unusable};

/// The most bytes of pixels that are kept: 22 megapixels. A larger picture is read again each time.
const MAX_KEPT: usize = 64 << 20;

/// What takes less is not worth asking the system whether there is room for it.
const NEGLIGIBLE: u64 = 16 << 20;

/// Reads pictures, each once as long as its file stays the same and few enough others come in between.
#[derive(Default)]
pub struct Pictures {
    /// The one used last is the last.
    kept: Mutex<Vec<Kept>>,
    /// The most that reading a request's pictures has taken.
    reading: AtomicU64,
    available: Option<fn() -> Option<u64>>,
}

/// Bytes that pictures to start from take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PictureBytes {
    /// At the most, while those of one request are read and brought to its size.
    pub reading: u64,
    /// All the time.
    pub kept: u64,
}

struct Kept {
    path: PathBuf,
    stamp: Stamp,
    decoded: Arc<Decoded>,
}

/// Tells whether a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: SystemTime,
}

impl Pictures {
    /// Refuses pictures that take more memory than `available` says there is at that moment.
    pub fn within(available: fn() -> Option<u64>) -> Self {
        Self { available: Some(available), ..Self::default() }
    }

    /// What those read so far take.
    pub fn bytes(&self) -> PictureBytes {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.iter().map(|kept| kept.decoded.rgb.as_raw().len() as u64).sum();
        PictureBytes { reading: self.reading.load(Ordering::Relaxed), kept }
    }

    /// Counts `bytes` that the picture at `path` is about to take, beside `held` that are taken already.
    ///
    /// # Errors
    /// Names the file when there is no room for it.
    pub(super) fn make_room(&self, path: &Path, bytes: u64, held: u64) -> Result<()> {
        self.reading.fetch_max(held + bytes, Ordering::Relaxed);
        if let (true, Some(available)) = (bytes > NEGLIGIBLE, self.available.and_then(|ask| ask())) {
            let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
            ensure!(
                bytes <= available,
                "{}: reading it takes about {} MB of memory, and {} MB are available; make it smaller first",
                unusable(path),
                megabytes(bytes),
                available / 1_000_000
            );
        }
        Ok(())
    }

    /// Width and height of a picture file, upright.
    ///
    /// # Errors
    /// Names the file, and says what is wrong with it.
    pub fn size(&self, path: &Path) -> Result<(u32, u32)> {
        let stamp = Stamp::of(path);
        if let Some(decoded) = self.find(path, stamp) {
            return Ok(decoded.rgb.dimensions());
        }
        let opened = self.open(path)?;
        let (width, height) = opened.dimensions()?;
        // Who asks for the size is about to ask for the pixels.
        if 3 * width as usize * height as usize <= MAX_KEPT {
            self.keep(path, stamp, &Arc::new(self.decode(&opened)?));
        }
        Ok((width, height))
    }

    /// # Errors
    /// Names the file, and says what is wrong with it.
    pub(super) fn read(&self, path: &Path) -> Result<Arc<Decoded>> {
        let stamp = Stamp::of(path);
        if let Some(decoded) = self.find(path, stamp) {
            return Ok(decoded);
        }
        let decoded = Arc::new(self.decode(&self.open(path)?)?);
        self.keep(path, stamp, &decoded);
        Ok(decoded)
    }

    /// The pixels of a file that is read but once.
    ///
    /// # Errors
    /// Names the file, and says what is wrong with it.
    pub fn rgb(&self, path: &Path) -> Result<RgbImage> {
        Ok(self.decode(&self.open(path)?)?.rgb)
    }

    fn open<'a>(&self, path: &'a Path) -> Result<Opened<'a>> {
        let length = path.metadata().map_or(0, |file| file.len()).min(MAX_FILE);
        self.make_room(path, length, 0)?;
        Opened::read(path)
    }

    fn decode(&self, opened: &Opened<'_>) -> Result<Decoded> {
        self.make_room(opened.path(), opened.decoding_bytes()?, opened.file_bytes())?;
        opened.decode()
    }

    fn find(&self, path: &Path, stamp: Option<Stamp>) -> Option<Arc<Decoded>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|kept| kept.path == path && Some(kept.stamp) == stamp)?;
        kept[at..].rotate_left(1);
        kept.last().map(|kept| kept.decoded.clone())
    }

    /// Keeps `decoded` in the place of what the file was before and of those used longest ago.
    fn keep(&self, path: &Path, stamp: Option<Stamp>, decoded: &Arc<Decoded>) {
        let Some(stamp) = stamp.filter(|_| decoded.rgb.as_raw().len() <= MAX_KEPT) else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| kept.path != path);
        kept.push(Kept { path: path.to_owned(), stamp, decoded: decoded.clone() });
        let mut bytes: usize = kept.iter().map(|kept| kept.decoded.rgb.as_raw().len()).sum();
        while bytes > MAX_KEPT {
            bytes -= kept.remove(0).decoded.rgb.as_raw().len();
        }
    }
}

impl Stamp {
    /// None where the system does not tell; such a file is read each time.
    fn of(path: &Path) -> Option<Self> {
        let metadata = path.metadata().ok()?;
        Some(Self { length: metadata.len(), modified: metadata.modified().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn a_shared_picture_is_read_once_and_a_changed_one_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let save = |width| RgbImage::from_pixel(width, 8, Rgb([1, 2, 3])).save(&path).unwrap();
        save(16);
        let pictures = Pictures::default();
        assert_eq!(pictures.size(&path).unwrap(), (16, 8));
        let first = pictures.read(&path).unwrap();
        assert!(Arc::ptr_eq(&first, &pictures.read(&path).unwrap()));
        assert_eq!(pictures.kept.lock().unwrap().len(), 1);
        save(1024);
        assert_eq!(pictures.read(&path).unwrap().rgb.dimensions(), (1024, 8));
        assert_eq!(pictures.kept.lock().unwrap().len(), 1);
    }

    #[test]
    fn pictures_that_memory_has_no_room_for_are_refused_and_the_others_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        RgbImage::from_pixel(3000, 2000, Rgb([1, 2, 3])).save(&path).unwrap();
        let length = path.metadata().unwrap().len();
        let pictures = Pictures::within(|| Some(18_000_000));
        assert_eq!(pictures.rgb(&path).unwrap().dimensions(), (3000, 2000));
        assert_eq!(pictures.bytes(), PictureBytes { reading: 18_000_000 + length, kept: 0 });
        assert_eq!(pictures.size(&path).unwrap(), (3000, 2000));
        assert_eq!(pictures.bytes().kept, 18_000_000);
        let error = Pictures::within(|| Some(17_999_999)).size(&path).unwrap_err().to_string();
        assert!(error.contains("a.png") && error.contains("18 MB of memory"), "{error}");
        // Where nobody knows how much there is, nothing is refused.
        assert!(Pictures::within(|| None).size(&path).is_ok());
    }

    #[test]
    fn no_more_is_kept_than_the_bound_and_what_was_used_last_stays() {
        let decoded = |side| {
            let rgb = RgbImage::new(side, side);
            let hash = String::new();
            let fingerprint = crate::files::Fingerprint { whole: hash.clone(), data: hash };
            Arc::new(Decoded { rgb, fingerprint })
        };
        let stamp = Some(Stamp { length: 1, modified: SystemTime::UNIX_EPOCH });
        let pictures = Pictures::default();
        let has = |name: &str| pictures.find(Path::new(name), stamp).is_some();
        // 27 megabytes each: two fit.
        pictures.keep(Path::new("a"), stamp, &decoded(3000));
        pictures.keep(Path::new("b"), stamp, &decoded(3000));
        assert!(has("b") && has("a"));
        pictures.keep(Path::new("c"), stamp, &decoded(3000));
        assert!(has("a") && has("c") && !has("b"));
        pictures.keep(Path::new("too large"), stamp, &decoded(4730));
        assert!(has("a") && has("c") && !has("too large"));
    }
}

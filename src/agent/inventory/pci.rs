//! Which NVIDIA GPUs the kernel sees on the PCI bus, whether they have a driver or not.

use std::fs;
use std::path::Path;

/// Where Linux lists the devices of the bus.
pub(super) const DEVICES: &str = "/sys/bus/pci/devices";
/// NVIDIA's number (pci.ids).
const NVIDIA: u32 = 0x10de;
/// Display controllers (PCI class 03): VGA, 3D and others.
const DISPLAY: u32 = 0x03;

/// How many there are; none where there is no such bus.
pub(super) fn nvidia_gpus(devices: &Path) -> usize {
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let read = |file: &str| hexadecimal(&entry.path().join(file));
            read("vendor") == Some(NVIDIA) && read("class").map(|c| c >> 16) == Some(DISPLAY)
        })
        .count()
}

/// A file such as `0x10de`.
fn hexadecimal(path: &Path) -> Option<u32> {
    let text = fs::read_to_string(path).ok()?;
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvidias_display_controllers_are_counted_and_nothing_else_on_the_bus() {
        let bus = tempfile::tempdir().expect("a directory");
        for (name, vendor, class) in [
            ("vga", "0x10de\n", "0x030000\n"),
            ("3d", "0x10de\n", "0x030200\n"),
            ("audio", "0x10de\n", "0x040300\n"),
            ("bridge", "0x10de\n", "0x068000\n"),
            ("other", "0x1002\n", "0x030000\n"),
            ("odd", "10de", "?"),
        ] {
            let device = bus.path().join(name);
            fs::create_dir(&device).expect("a directory");
            fs::write(device.join("vendor"), vendor).expect("writes");
            fs::write(device.join("class"), class).expect("writes");
        }
        fs::create_dir(bus.path().join("empty")).expect("a directory");
        assert_eq!(nvidia_gpus(bus.path()), 2);
        assert_eq!(nvidia_gpus(&bus.path().join("nowhere")), 0);
    }
}

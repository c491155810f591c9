//! Writes the C headers in place.

fn main() -> std::io::Result<()> {
    for header in vmsrs_headers::headers() {
        if let Some(folder) = header.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&header.path, &header.text)?;
        println!("{}", header.path.display());
    }
    Ok(())
}

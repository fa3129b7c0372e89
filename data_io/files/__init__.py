"""Files behind `data_io.storage`: where a URL leads, local disks, object stores, and Parquet."""

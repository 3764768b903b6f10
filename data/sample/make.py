"Make the small committed sample that the audit notebooks and the service notebook run on by default."
import shutil
from pathlib import Path

from mlgov_nb.data.read import read_rows, write_rows

here, root = Path(__file__).parent, Path(__file__).parents[2]
for part, n in (("reference", 600), ("windows/1985-89", 400), ("windows/2014-18", 400)):
    write_rows(here/f"{Path(part).name}.parquet", read_rows(root/"data/split"/f"{part}.parquet").head(n))
shutil.rmtree(here/"model", ignore_errors=True)
shutil.copytree(root/"release/champion", here/"model")

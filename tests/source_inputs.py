"""Small inputs of each source, and what tests ask of a command and of a data set."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whenwhy.events.sources import import_source

DATA = Path(os.environ.get("WHENWHY_DATA", Path(__file__).parents[2] / "shared" / "data"))
SYNTHETIC = {"patients": 2000, "patients_per_file": 500, "longest": 5000, "seed": 3}
MAPPING = {"subject": "id", "time": "t", "code": "c", "value": "v"}


def real(folder: str) -> Path:
    if not (DATA / folder).is_dir():
        pytest.skip(f"there is no {DATA / folder}: set WHENWHY_DATA to the folder of the real data")
    return DATA / folder


def contents(folder: Path, *but: str) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in but)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def events_of(meds_folder: Path) -> pd.DataFrame:
    files = sorted((meds_folder / "data").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pandas()


STAY = {
    101: "00:00,RecordID,101\n00:00,Age,54\n00:00,Gender,0\n00:00,Height,-1\n00:00,ICUType,4\n00:00,Weight,-1\n"
    "00:07,HR,73\n00:07,Temp,-17.8\n01:30,Weight,81.3\n47:59,pH,735\n",
    102: "00:00,RecordID,102\n00:00,Age,90\n00:00,Gender,-1\n00:00,Height,170.2\n00:00,ICUType,1\n00:00,Weight,60\n",
    103: "00:00,RecordID,103\n00:00,Age,18\n00:00,Gender,1\n00:00,Height,1.8\n00:00,ICUType,2\n00:00,Weight,60\n"
    "00:00,Weight,61\n10:00,Urine,400\n10:00,Urine,0\n48:00,GCS,15\n",
}
OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n101,6,1,5,-1,0\n102,16,8,8,-1,1\n"


def write_challenge(folder: Path) -> Path:
    (folder / "set-a").mkdir(parents=True)
    for record, lines in STAY.items():
        (folder / "set-a" / f"{record}.txt").write_text("Time,Parameter,Value\n" + lines)
    (folder / "Outcomes-a.txt").write_text(OUTCOMES)
    return folder


def write_table(folder: Path, patients: int = 60) -> Path:
    """events.csv of patients p1..., labels.csv, people.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows, labels, people = ["id,t,c,v,u"], ["who,at,out"], ["id,sex,born,height"]
    for patient in range(1, patients + 1):
        when = datetime(2020, 1, 1) + timedelta(minutes=int(random.integers(0, 10_000)))
        for _ in range(int(random.integers(1, 9))):
            when += timedelta(minutes=int(random.integers(0, 300)))
            rows.append(f"p{patient},{when:%Y-%m-%d %H:%M:%S},HR,{random.normal(80, 9):.1f},/min")
            rows.append(f"p{patient},{when:%Y-%m-%dT%H:%M:%SZ},DX,,")
        rows.append(f"p{patient},,BLOOD,,")
        labels.append(f"p{patient},2020-03-01,{'yes' if patient % 3 == 0 else 'no'}")
        people.append(f"p{patient},{'FM'[patient % 2]},19{40 + patient % 50}-02-28,{150 + patient % 40}")
    random.shuffle(body := rows[1:])
    (folder / "events.csv").write_text("\n".join([rows[0], *body]) + "\n")
    (folder / "labels.csv").write_text("\n".join(labels) + "\n")
    (folder / "people.csv").write_text("\n".join(people) + "\n")
    return folder


def import_table(folder: Path, out: Path) -> None:
    import_source(
        "table",
        out,
        folder / "events.csv",
        **MAPPING,
        unit="u",
        static_table=folder / "people.csv",
        birth="born",
        labels=folder / "labels.csv",
        label_subject="who",
        label_time="at",
        label="out",
        task="outcome",
    )

from frcnn.data import Problems


def test_summary_counts_and_names_the_first():
    problems = Problems()
    problems.add("boxes without area", "a.xml object 3", dropped=True)
    problems.add("boxes without area", "b.xml object 1", dropped=True)
    problems.add("boxes clipped to the image", "c.xml object 2", dropped=False)
    assert problems
    assert problems.counts == {"boxes without area": 2, "boxes clipped to the image": 1}
    assert problems.summary() == (
        "dropped 2 boxes without area (first: a.xml object 3), "
        "kept 1 boxes clipped to the image (first: c.xml object 2)"
    )


def test_table_names_every_place():
    problems = Problems()
    for number in range(8):
        problems.add("unreadable images", f"{number}.jpg", dropped=True)
    lines = problems.table().splitlines()
    assert lines[0].split() == ["dropped", "8", "unreadable", "images"]
    assert [line.strip() for line in lines[1:]] == [f"{n}.jpg" for n in range(8)]


def test_nothing_wrong():
    assert not Problems()
    assert Problems().summary() == Problems().table() == "no problems found"

"""Drives that vanish under the folder nodes and EAM Compare: one sentence, and the next run goes on."""

from comfy_host import ComfyServer, ExecutionError
from folders import Job, make_pictures
from graphs import Graph

NAMES = ["1.png", "2.png", "3.png"]


def test_an_input_folder_that_is_gone_fails_no_picture(server: ComfyServer) -> None:
    job = Job(server, go_on=False, existing="overwrite")
    make_pictures(job.folder, *NAMES)
    job.run()
    job.folder.rename(job.folder.with_name(f"{job.folder.name}_away"))
    job.folder.mkdir()  # what lies under the place of a drive
    assert "expected the folder of pictures to stay, but it is gone or empty; bring its drive back" in job.error()
    job.folder.rmdir()
    assert "expected a folder of pictures, found none there" in job.error()
    job.folder.with_name(f"{job.folder.name}_away").rename(job.folder)
    job.run(), job.run()
    assert job.run() == "Finished: 3 of 3."
    assert [line["name"] for line in job.lines("done")] == NAMES and not job.lines("failed")


def test_an_output_folder_that_is_gone_costs_no_picture(server: ComfyServer) -> None:
    job = Job(server, go_on=False, existing="overwrite")
    make_pictures(job.folder, *NAMES)
    job.run()
    away = job.output.rename(job.output.with_name(f"{job.output.name}_away"))
    assert "eam_folder.jsonl: expected to add a line to the report, could not (No such file" in job.error()
    assert not job.output.exists()
    away.rename(job.output)
    job.run(), job.run()
    assert job.run() == "Finished: 3 of 3."
    assert [line["name"] for line in job.lines("done")] == NAMES and job.results() == NAMES


def test_previews_that_cannot_be_written_are_one_sentence(server: ComfyServer, photos: None) -> None:
    graph = Graph(server)
    image = graph.add("LoadImage", image="one.png")[0]
    graph.add("EAM_Compare", before=image, after=image)
    temp, away = server.work_dir / "temp", server.work_dir / "temp_away"
    if temp.exists():
        temp.rename(away)
    temp.write_text("no folder")
    try:
        server.run(graph.prompt)
        raise AssertionError("nothing was said")
    except ExecutionError as error:
        said = str(error)
    finally:
        temp.unlink()
        if away.exists():
            away.rename(temp)
    assert "expected to write previews into ComfyUI's temp folder, could not (" in said and "\n" not in said
    assert server.run(graph.prompt)

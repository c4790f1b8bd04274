import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Reads Spring Boot's configuration: the service's own, and the one that the agent writes. It shows that these hold all that a service
 * needs. This is the part of YAML that stands there and no more: mappings by indentation, plain values, and lists of them in brackets.
 * A Spring Boot application has a real reader.
 */
final class Settings {
    private final Map<String, String> values = new HashMap<>();

    private Settings() {}

    /** The properties of several files; of two with one name, the later one counts. */
    static Settings read(List<String> files) throws IOException {
        var settings = new Settings();
        for (String file : files) {
            settings.add(Path.of(file));
        }
        return settings;
    }

    /** The value of a property; a fault if it is not set. */
    String get(String name) {
        String value = values.get(name);
        if (value == null) {
            throw new IllegalArgumentException("the property " + name + " is not set");
        }
        return scalar(value);
    }

    List<String> list(String name) {
        String value = get(name);
        if (!value.startsWith("[") || !value.endsWith("]")) {
            return List.of(value);
        }
        var items = new ArrayList<String>();
        for (String item : value.substring(1, value.length() - 1).split(",")) {
            items.add(scalar(item));
        }
        return items;
    }

    /** Where a property leads; `file:` is how Spring writes a path. */
    Path path(String name) {
        return Path.of(get(name).replaceFirst("^file:", ""));
    }

    private void add(Path file) throws IOException {
        var path = new String[32];
        var indents = new int[32];
        int depth = 0;
        for (String line : Files.readAllLines(file)) {
            String text = line.strip();
            if (text.isEmpty() || text.startsWith("#")) {
                continue;
            }
            int indent = line.length() - line.stripLeading().length();
            while (depth > 0 && indents[depth - 1] >= indent) {
                depth--;
            }
            int colon = (text + " ").indexOf(": ");
            if (colon < 0 || text.startsWith("- ")) {
                throw new IOException(file + ": \"" + text + "\" is more than this program reads");
            }
            path[depth] = text.substring(0, colon);
            indents[depth++] = indent;
            if (colon + 1 < text.length()) {
                values.put(String.join(".", Arrays.copyOf(path, depth)), text.substring(colon + 1));
            }
        }
    }

    /** A value without its comment and its quotes. */
    private static String scalar(String text) {
        String value = text.strip();
        if (value.startsWith("\"") && value.indexOf('"', 1) > 0) {
            return value.substring(1, value.indexOf('"', 1));
        }
        return value.replaceFirst("(^|\\s+)#.*$", "");
    }
}
